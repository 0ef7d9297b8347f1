// Package demo tells the story of oodmon in under a minute, with nothing but
// this binary: an embedded Kafka broker, real embeddings of handwritten digits,
// a head fitted on the spot, a running monitor, and digits it never saw.
package demo
