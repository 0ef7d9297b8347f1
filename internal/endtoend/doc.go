// Package endtoend tests the program among the real ones that surround it: a
// Prometheus that scrapes it and an Alertmanager that tells of its alerts.
package endtoend
