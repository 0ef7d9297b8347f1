// Package model holds what is learned: the head, its calibration, the file that
// carries both, and the registry that says which version is in service.
package model
