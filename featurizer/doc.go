// Package featurizer turns the bytes of messages and files into Arrow records
// of embeddings. Every byte is checked before it is believed: what cannot be
// an embedding becomes a Reject that says where, what and why.
package featurizer
