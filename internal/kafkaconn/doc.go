// Package kafkaconn reaches Kafka's brokers: addresses, TLS and SASL for every
// connection that oodmon makes, and a check that says truthfully why one of
// them cannot be made.
package kafkaconn
