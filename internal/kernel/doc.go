// Package kernel holds the hot loops: the nearest prototype of each of many
// embeddings, fused so that no matrix of rows times classes is ever written,
// and the matrix products of training.
package kernel
