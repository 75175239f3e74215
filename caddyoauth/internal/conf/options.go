package conf

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// Options are what a block of a Caddyfile may hold: the name of each option, and how it is read.
type Options map[string]Option

// Option says how an option is read, from its name to the end of its line or its block. It may
// appear once in a block, unless it is Repeatable.
type Option struct {
	read       func(d *caddyfile.Dispenser) error
	repeatable bool
}

// Func returns an option that the function reads. The cursor is on the option's name when it is
// called. Its errors must name the place in the Caddyfile, as d.Errf and At do.
func Func(read func(d *caddyfile.Dispenser) error) Option { return Option{read: read} }

// Read reads the option whose name the cursor is on.
func (o Option) Read(d *caddyfile.Dispenser) error { return o.read(d) }

// Repeatable returns an option that is read in the same way and may appear several times.
func Repeatable(option Option) Option {
	option.repeatable = true
	return option
}

// Read reads the block that begins after the cursor, if there is one; block is what errors call
// it. The checks are made at the end, with or without a block, for what depends on several options.
func (o Options) Read(d *caddyfile.Dispenser, block string, checks ...func() error) error {
	var last string
	seen := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		name := d.Val()
		option, known := o[name]
		switch {
		case name == "{" && last != "":
			return d.Errf("%s takes no block", last)
		case !known:
			return d.Errf("unrecognized %s option '%s' (known: %s)", block, name, strings.Join(slices.Sorted(maps.Keys(o)), ", "))
		case seen[name] && !option.repeatable:
			return d.Errf("duplicate option %s", name)
		}
		last, seen[name] = name, true
		if err := option.Read(d); err != nil {
			return err
		}
	}
	for _, check := range checks {
		if err := At(d, check()); err != nil {
			return err
		}
	}
	return nil
}

// Module returns an option `<option> <name> ...`, where name is that of a module in the namespace.
// The module reads the rest itself. It is passed to use, with its JSON form, in which a field that
// is called like the option holds the module's name.
func Module(namespace string, use func(raw json.RawMessage, module caddyfile.Unmarshaler) error) Option {
	return Func(func(d *caddyfile.Dispenser) error {
		option := d.Val()
		var known []string
		for _, module := range caddy.GetModules(namespace) {
			known = append(known, module.ID.Name())
		}
		if !d.NextArg() {
			return d.Errf("%s takes a name (known: %s)", option, strings.Join(known, ", "))
		}
		name := d.Val()
		if err := OneOf(option, name, known...); err != nil {
			return d.WrapErr(err)
		}
		module, err := caddyfile.UnmarshalModule(d, namespace+"."+name)
		if err != nil {
			return err
		}
		return At(d, use(caddyconfig.JSONModuleObject(module, option, name, nil), module))
	})
}

// Args returns the arguments of the option whose name the cursor is on: at least min, and at most
// max of them. If max is negative, there is no upper bound.
func Args(d *caddyfile.Dispenser, min, max int) ([]string, error) {
	option := d.Val()
	args := d.RemainingArgs()
	if len(args) >= min && (len(args) <= max || max < 0) {
		return args, nil
	}
	count := func(n int) string {
		switch n {
		case 0:
			return "no arguments"
		case 1:
			return "one argument"
		}
		return fmt.Sprintf("%d arguments", n)
	}
	takes := count(max)
	switch {
	case max < 0:
		takes = "at least " + count(min)
	case min < max:
		takes = "at most " + count(max)
	}
	return nil, d.Errf("%s takes %s, got %d", option, takes, len(args))
}

// NoBlock makes sure that the line of the option, which has been read, opens no block. An empty
// block does no harm.
func NoBlock(d *caddyfile.Dispenser, option string) error {
	if d.NextBlock(d.Nesting()) {
		return d.Errf("%s takes no block", option)
	}
	return nil
}

// At adds the place of the cursor in the Caddyfile to err. It returns nil if err is nil.
func At(d *caddyfile.Dispenser, err error) error {
	if err == nil {
		return nil
	}
	return d.WrapErr(err)
}
