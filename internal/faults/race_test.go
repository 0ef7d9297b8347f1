//go:build race

package faults

func init() { raceDetector = true }
