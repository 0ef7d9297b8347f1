// Package avo generates the assembly of internal/kernel. Each folder below is a
// program that writes one file of kernels and its Go declarations; scripts/asm
// runs all of them, or checks that what is committed is what they write now.
//
// It is a module of its own so that the generator's dependencies are not
// oodmon's. avo v0.5.0 with x/tools v0.52.0: the tools that avo v0.6.0 asks for
// do not compile on Go 1.26.
package avo
