// Package trainer makes models: it fits an IsoMax+ head to labelled embeddings,
// calibrates it on embeddings that the fit never saw, evaluates it, and decides
// whether it may replace the model in service. Memory does not grow with the
// data.
package trainer
