// Package kernel holds the hot loops: the nearest prototype of each of many
// embeddings, the statistics of all their logits and the k-th nearest of a bank,
// none of which writes a matrix of rows times classes; the products of drift's bets;
// and what training does for each value: matrix products, softmax, distances, norms,
// AdamW.
package kernel
