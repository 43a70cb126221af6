// Package tenantkit is the kit of a key owner: a customer whose own key in a
// KMS protects his objects in the vendor's proxy.
//
// Init returns what the customer's administrator applies on his side: a key
// that the proxy may use, and nothing else. Check proves, from the proxy's
// side and with the proxy's own credentials, what was given to it. It sends no
// request that could change a key or who may use it.
//
//	init.go        Init and its templates
//	values.go      the facts that Init needs, and their strict forms
//	check.go       Check: wrapping, unwrapping, and what must be refused
//	describe.go    judging what each KMS says about a key
//	awspolicy.go   judging a key policy of AWS
//	revoke.go      how to revoke a key, for each provider
//	report.go      the report as text and as JSON
//	page.go        the report as an HTML page in one file
package tenantkit
