// Package faults holds the tests that kill what a deployment consists of, and
// then account for every record. They run `oodmon run` in a process of its own.
package faults
