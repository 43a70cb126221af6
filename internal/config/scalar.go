package config

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/cmekproxy/cmekproxy/internal/keytemplate"
)

var (
	durationType = reflect.TypeFor[time.Duration]()
	bytesType    = reflect.TypeFor[Bytes]()
)

// Bytes is a number of bytes. A file has it as in GOMEMLIMIT: a whole number
// with a unit, such as 512MiB.
type Bytes int64

// byteUnits are the units of Bytes.
var byteUnits = map[string]int64{"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}

func parseBytes(text string) (Bytes, error) {
	digits := strings.TrimRight(text, "BKMGTi")
	unit, ok := byteUnits[text[len(digits):]]
	if text == "0" {
		unit, ok = 1, true
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || !ok || n < 0 || n > math.MaxInt64/unit {
		return 0, errors.New("not a number of bytes")
	}
	return Bytes(n * unit), nil
}

// scalar decodes a field that is neither a struct nor a list.
//
// Errors show the text as it is in the file, before environment variables
// are replaced. They never show secrets.
func (d *decoder) scalar(n *yaml.Node, v reflect.Value, path string, values []string) {
	field := v.Addr().Interface()
	if secret, ok := field.(*Secret); ok {
		d.secret(n, secret, path)
		return
	}
	if n.Kind != yaml.ScalarNode {
		d.fail(field, "%s must be %s, not %s", path, wanted(v, values), describe(n))
		return
	}

	text, err := d.expand(n.Value, takesTemplate(path))
	if d.isElsewhere(field, err) {
		return
	}
	if err != nil {
		d.fail(field, "%s: %v", path, err)
		return
	}

	quoted := n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0
	if quoted && text == n.Value && v.Type() != durationType && v.Type() != bytesType &&
		(v.CanInt() || v.Kind() == reflect.Float64 || v.Kind() == reflect.Bool) {
		d.fail(field, "%s must be %s, not a string", path, wanted(v, values))
		return
	}

	if err := set(v, text, values); err != nil {
		d.fail(field, "%s must be %s, not %q%s", path, wanted(v, values), clip(n.Value), suggestion(n.Value, values))
	}
}

// set parses text into v.
func set(v reflect.Value, text string, values []string) error {
	switch {
	case v.Type() == durationType:
		duration, err := time.ParseDuration(text)
		v.SetInt(int64(duration))
		return err
	case v.Type() == bytesType:
		number, err := parseBytes(text)
		v.SetInt(int64(number))
		return err
	case v.CanInt():
		number, err := strconv.ParseInt(text, 10, v.Type().Bits())
		v.SetInt(number)
		return err
	case v.Kind() == reflect.Float64:
		number, err := strconv.ParseFloat(text, 64)
		v.SetFloat(number)
		return err
	case v.Kind() == reflect.Bool:
		v.SetBool(text == "true")
		if text != "true" && text != "false" {
			return errors.New("neither true nor false")
		}
	case v.Kind() == reflect.String:
		v.SetString(text)
		if len(values) > 0 && !slices.Contains(values, text) {
			return errors.New("not one of the values")
		}
	}

	return nil
}

// wanted describes the values that v accepts.
func wanted(v reflect.Value, values []string) string {
	switch {
	case len(values) > 0:
		return "one of " + strings.Join(values, ", ")
	case v.Type() == durationType:
		return "a duration such as 90s, 5m or 1h30m"
	case v.Type() == bytesType:
		return "a number of bytes such as 512MiB or 2GiB"
	case v.CanInt():
		return "a whole number"
	case v.Kind() == reflect.Float64:
		return "a number"
	case v.Kind() == reflect.Bool:
		return "true or false"
	default:
		return "a string"
	}
}

// suggestion returns the end of an error message that already lists all
// values, about a value that is not one of them.
func suggestion(text string, values []string) string {
	if nearest(text, values) == "" {
		return ""
	}
	return didYouMean(text, values)
}

// unsetError is the error for an environment variable that is not set, or
// that is empty: an empty value could disable a protection.
type unsetError struct{ name, state string }

func (e *unsetError) Error() string {
	return fmt.Sprintf("the environment variable %s is %s", e.name, e.state)
}

var (
	variable     = regexp.MustCompile(`\$\$\{|\$\{[^}]*\}?`)
	variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
)

// expand replaces each ${NAME} by the environment variable NAME, and $${ by
// ${. The replacement is not expanded again. In a template, the variables of
// package keytemplate stay.
func (d *decoder) expand(text string, template bool) (string, error) {
	var failure error
	expanded := variable.ReplaceAllStringFunc(text, func(match string) string {
		switch name, closed := strings.CutSuffix(strings.TrimPrefix(match, "${"), "}"); {
		case match == "$${":
			return "${"
		case template && closed && keytemplate.IsVariable(name):
			return match
		}

		value, err := d.lookup(match[len("${"):])
		if failure == nil {
			failure = err
		}

		return value
	})

	return expanded, failure
}

// lookup returns the value of an environment variable. rest is its name
// with the closing brace.
func (d *decoder) lookup(rest string) (string, error) {
	if d.tenant {
		return "", errTenantVariable
	}
	name, closed := strings.CutSuffix(rest, "}")
	if !closed || !variableName.MatchString(name) {
		return "", errors.New("${ must be followed by the name of an environment variable and }; " +
			"write $${ for a literal ${")
	}

	value, ok := d.lookupEnv(name)
	switch {
	case !ok:
		return "", &unsetError{name, "not set"}
	case value == "":
		return "", &unsetError{name, "empty"}
	default:
		return value, nil
	}
}
