package config

import (
	"cmp"
	"reflect"

	"go.yaml.in/yaml/v4"
)

// healthPorts are the settings that decide where health checks are answered.
type healthPorts struct {
	AdminListen  string `yaml:"admin_listen"`
	HealthListen string `yaml:"health_listen"`
}

// HealthAddress returns the address on which the proxy with this config file
// answers health checks, as HOST:PORT. It reads no other setting and no
// secret: the proxy that is asked may run with an earlier version of the
// file, and must not be called unhealthy for a mistake in a later one.
func HealthAddress(name string, data []byte, lookupEnv func(string) (string, bool)) (string, error) {
	d := newDecoder(name, lookupEnv)
	ports := healthPorts{AdminListen: defaults().AdminListen}
	if root := d.document(data); root != nil {
		keepFields(root, reflect.TypeFor[healthPorts]())
		d.mapping(root, reflect.ValueOf(&ports).Elem(), "")
	}

	field, setting := &ports.HealthListen, "health_listen"
	if cmp.Or(*field, ports.AdminListen) == ports.AdminListen {
		field, setting = &ports.AdminListen, "admin_listen"
	}
	if _, port, ok := d.listenAddress(field, setting); ok && port == 0 {
		d.fail(field, "%s has port 0, which means any free port, so it is not known which one to ask", setting)
	}

	return *field, d.err()
}

// keepFields removes the keys of a mapping that are not fields of a struct.
func keepFields(n *yaml.Node, of reflect.Type) {
	if n.Kind != yaml.MappingNode {
		return
	}

	var kept []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		for _, f := range fieldsOf(of) {
			if n.Content[i].Value == f.name {
				kept = append(kept, n.Content[i], n.Content[i+1])
			}
		}
	}
	n.Content = kept
}
