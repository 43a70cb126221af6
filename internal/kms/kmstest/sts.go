package kmstest

import (
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// Role is a role of the server's account, which a principal can assume with an
// external id
// (https://docs.aws.amazon.com/IAM/latest/UserGuide/id_roles_common-scenarios_third-party.html).
type Role struct {
	Name       string
	Trusted    string // ARN of the principal
	ExternalID string // "" for none
}

// SetRole creates or replaces a role and returns its ARN, for policies. Set
// AWS_ENDPOINT_URL_STS to the server's URL to assume it.
func (s *Server) SetRole(role Role) (arn string) {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	s.store.roles[role.Name] = role
	return s.store.roleARN(role.Name)
}

func (s *store) roleARN(name string) string { return "arn:aws:iam::" + s.account + ":role/" + name }

// isSTS reports whether a request is for STS, which has no X-Amz-Target.
func isSTS(r *http.Request) bool {
	return r.Header.Get("X-Amz-Target") == "" && r.Method == http.MethodPost &&
		strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded")
}

// serveSTS implements GetCallerIdentity and AssumeRole of
// https://docs.aws.amazon.com/STS/latest/APIReference/welcome.html.
func (s *Server) serveSTS(w http.ResponseWriter, r *http.Request, id string) {
	r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
	action := r.PostFormValue("Action")
	s.mu.Lock()
	s.callCounts["sts:"+action]++
	s.mu.Unlock()

	result, err := s.sts(r, action)
	w.Header().Set("Content-Type", "text/xml")
	if refusal, ok := errors.AsType[*apiError](err); ok {
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprintf(w, `<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type>`+
			`<Code>%s</Code><Message>%s</Message></Error><RequestId>%s</RequestId></ErrorResponse>`,
			refusal.code, escapeXML(refusal.message), id)
		return
	}
	fmt.Fprintf(w, `<%[1]sResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><%[1]sResult>%[2]s</%[1]sResult>`+
		`<ResponseMetadata><RequestId>%[3]s</RequestId></ResponseMetadata></%[1]sResponse>`, action, result, id)
}

func escapeXML(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a Builder returns no error
	return b.String()
}

func (s *Server) sts(r *http.Request, action string) (result string, err error) {
	accessKeyID, err := checkSigned(r, "sts", s.store.region)
	if err != nil {
		return "", err
	}

	caller := s.store.user(accessKeyID)
	switch action {
	case "GetCallerIdentity":
		if name, ok := strings.CutPrefix(caller, s.store.roleARN("")); ok {
			caller = "arn:aws:sts::" + s.store.account + ":assumed-role/" + name + "/" + "cmekproxy"
		}
		return fmt.Sprintf("<Arn>%s</Arn><UserId>AIDEXAMPLE</UserId><Account>%s</Account>",
			caller, s.store.account), nil
	case "AssumeRole":
		return s.assumeRole(caller, r.PostFormValue("RoleArn"), r.PostFormValue("ExternalId"))
	default:
		return "", refuse("InvalidAction", "Could not find operation %s", action)
	}
}

func (s *Server) assumeRole(caller, arn, externalID string) (result string, err error) {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()

	name, _ := strings.CutPrefix(arn, s.store.roleARN(""))
	role, ok := s.store.roles[name]
	if !ok || role.Trusted != caller || role.ExternalID != externalID {
		return "", refuse("AccessDenied", "User: %s is not authorized to perform: sts:AssumeRole on resource: %s",
			caller, arn)
	}

	key := "ASIA" + strings.ToUpper(hex.EncodeToString(random(8)))
	s.store.sessions[key] = name
	return fmt.Sprintf("<Credentials><AccessKeyId>%s</AccessKeyId><SecretAccessKey>example</SecretAccessKey>"+
		"<SessionToken>example</SessionToken><Expiration>%s</Expiration></Credentials>",
		key, time.Now().Add(time.Hour).UTC().Format(time.RFC3339)), nil
}
