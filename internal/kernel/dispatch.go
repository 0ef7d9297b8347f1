package kernel

import (
	"fmt"
	"os"
	"strings"
	"sync"
)

// Environment is the variable that forces an implementation: avx512, avx2,
// neon or go.
const Environment = "OODMON_KERNEL"

// An Implementation is one set of the kernels, made for one kind of CPU. All of
// them keep the same promises. It is immutable.
type Implementation struct {
	name    string
	nearest *nearestKernel
	meter   *meter
	loops   *loops
}

// String returns the name, as OODMON_KERNEL has it.
func (i *Implementation) String() string { return i.name }

// Available returns the implementations that this CPU can run, the fastest
// first. The last is the pure-Go one, which runs on all.
func Available() []*Implementation { return append(native(), &portable) }

// Active returns the implementation in use: the fastest that this CPU can run,
// or the one that OODMON_KERNEL names. It is an error if that does not exist or
// this CPU lacks what it needs; the pure-Go one is in use then.
func Active() (*Implementation, error) { return active() }

var active = sync.OnceValues(func() (*Implementation, error) {
	return choose(os.Getenv(Environment), Available())
})

func choose(forced string, available []*Implementation) (*Implementation, error) {
	if forced == "" {
		return available[0], nil
	}
	names := make([]string, len(available))
	for i, impl := range available {
		if impl.name == forced {
			return impl, nil
		}
		names[i] = impl.name
	}
	can := strings.Join(names, ", ")
	switch forced {
	case "avx512", "avx2", "neon":
		return &portable, fmt.Errorf("%s=%s: this CPU, or its operating system, lacks what that needs; it can run %s", Environment, forced, can)
	}
	return &portable, fmt.Errorf("%s=%s: no such implementation; there are avx512, avx2, neon and go, and this CPU can run %s", Environment, forced, can)
}
