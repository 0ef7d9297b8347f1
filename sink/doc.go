// Package sink publishes score records and dead letters to Kafka topics, and
// encodes score records as JSON lines, CSV and Arrow streams. It knows a score
// record only as an Arrow record with named columns.
package sink
