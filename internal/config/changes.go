package config

import (
	"reflect"
	"slices"
)

// Changes are the names of the settings that differ between two
// configurations. In lists, the names have no index.
type Changes struct {
	Live    []string // those that a reload applies
	Restart []string // those that need a restart
}

// Compare returns the settings that differ, in the order of the file. A list
// that has become longer or shorter is named as a whole.
func Compare(a, b *Config) (c Changes) {
	c.compare(reflect.ValueOf(*a), reflect.ValueOf(*b), "", "")
	return c
}

func (c *Changes) compare(a, b reflect.Value, path, reload string) {
	switch {
	case reflect.DeepEqual(a.Interface(), b.Interface()):
	case a.Kind() == reflect.Struct:
		for i, f := range fieldsOf(a.Type()) {
			own := f.reload
			if own == "" {
				own = reload
			}
			c.compare(a.Field(i), b.Field(i), join(path, f.name), own)
		}
	case a.Kind() == reflect.Slice && a.Type().Elem().Kind() == reflect.Struct && a.Len() == b.Len():
		for i := range a.Len() {
			c.compare(a.Index(i), b.Index(i), path, reload)
		}
	default:
		c.add(path, reload)
	}
}

func (c *Changes) add(path, reload string) {
	list := &c.Restart // also for a setting without a tag
	if reload == "live" {
		list = &c.Live
	}
	if !slices.Contains(*list, path) {
		*list = append(*list, path)
	}
}
