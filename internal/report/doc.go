// Package report writes an evaluation as one HTML page that needs nothing else:
// no script, no font and no picture from elsewhere.
package report
