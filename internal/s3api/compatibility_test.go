package s3api

import (
	"context"
	"flag"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"
)

const compatibilityDoc = "../../docs/s3-compatibility.md"

var update = flag.Bool("update", false, "write the tables of the code into docs/s3-compatibility.md")

// The page has the tables of operations and of names without an effect.
func TestCompatibilityDoc(t *testing.T) {
	for name, want := range map[string]string{"operations": operationsTable(), "ignored": ignoredTable()} {
		t.Run(name, func(t *testing.T) { checkSection(t, name, want) })
	}
}

// checkSection compares a section of the page, which lies between two
// comments, or writes it.
func checkSection(t *testing.T, name, want string) {
	t.Helper()
	begin, end := "<!-- "+name+" -->\n", "<!-- /"+name+" -->"
	page, err := os.ReadFile(compatibilityDoc)
	if err != nil {
		t.Fatal(err)
	}

	before, rest, ok := strings.Cut(string(page), begin)
	table, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no %s … %s", compatibilityDoc, begin, end)
	}
	if table == want {
		return
	}

	if !*update {
		t.Fatalf(
			"%s does not have the %s of the code; update it:\ngo test ./internal/s3api -run TestCompatibilityDoc -update",
			compatibilityDoc, name,
		)
	}
	if err := os.WriteFile(compatibilityDoc, []byte(before+begin+want+end+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

func ignoredTable() string {
	var b strings.Builder
	b.WriteString("| where | ignored | in | why |\n|---|---|---|---|\n")
	for _, row := range ignoredNames {
		names := "names that S3 does not have"
		if row.names != unknownNames {
			names = "`" + strings.Join(strings.Fields(row.names), "`, `") + "`"
		}
		if row.in == inPresigned {
			names = "`x-amz-checksum-` of an algorithm, `x-amz-sdk-checksum-algorithm`"
		}
		ops := row.ops
		if ops != reads && ops != everyOp {
			ops = strings.ReplaceAll(ops, " ", ", ")
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", row.in, names, ops, row.why)
	}
	return b.String()
}

func operationsTable() string {
	var b strings.Builder
	b.WriteString("| operation | policy | needs | |\n|---|---|---|---|\n")
	for _, row := range routes {
		action := string(row.action)
		switch {
		case row.policy == refuse:
			action = ""
		case row.scope == bySigner:
			action = "any"
		case row.scope == unsigned:
			action = "nothing"
		}

		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", row.op, row.policy, action, notes[row.op])
	}

	return b.String()
}

// Every operation of the AWS SDK has a row. New operations of S3 show up
// here with an update of the SDK.
func TestEveryOperationHasARow(t *testing.T) {
	rows := make(map[string]bool)
	for _, row := range routes {
		if rows[row.op] {
			t.Errorf("%s has two rows; logs and metrics tell operations apart by name", row.op)
		}
		rows[row.op] = true
	}

	client, known := reflect.TypeFor[*s3.Client](), 0
	for m := range client.Methods() {
		if m.Type.NumIn() != 4 || m.Type.In(1) != reflect.TypeFor[context.Context]() {
			continue // an options type
		}
		known++
		if !rows[m.Name] {
			t.Errorf("%s has no row", m.Name)
		}
	}

	if known < 100 {
		t.Errorf("only %d operations found in the SDK", known)
	}
}

func TestRefusedHaveAReason(t *testing.T) {
	refused := 0
	for _, row := range routes {
		if (row.policy == refuse) != (row.serve == nil) {
			t.Errorf("%s is %s, and has a handler: %v", row.op, row.policy, row.serve != nil)
		}

		if row.policy == refuse {
			refused++
			if notes[row.op] == "" {
				t.Errorf("%s is refused without a reason", row.op)
			}
		}
	}

	if refused < 18 {
		t.Errorf("only %d operations are refused", refused)
	}

	for op := range notes {
		if !hasRow(op) {
			t.Errorf("a note is about %s, which has no row", op)
		}
	}
}

func hasRow(op string) bool {
	for _, row := range routes {
		if row.op == op {
			return true
		}
	}
	return false
}
