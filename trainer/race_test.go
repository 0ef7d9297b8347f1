//go:build race

package trainer

func init() { raceDetector = true }
