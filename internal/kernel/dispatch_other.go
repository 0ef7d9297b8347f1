//go:build !amd64 && !arm64

package kernel

// native returns what this CPU can run, the fastest first.
func native() []*Implementation { return nil }
