package kernel

// native returns what this CPU can run, the fastest first.
func native() []*Implementation { return nil }
