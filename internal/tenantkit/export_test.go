package tenantkit

// JudgePolicy judges a key policy for an identity, and returns the actions that
// change the key, those under a condition, and who everyone is.
func JudgePolicy(account string, arns []string, text string) (changing, conditional, everyone []string, err error) {
	g, err := (&awsIdentity{account: account, arns: arns}).judge(text)
	return g.changing, g.conditional, append(g.everyone, g.restricted...), err
}
