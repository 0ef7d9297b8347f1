// Package monitor joins the line: it takes batches from the consumer, decodes,
// scores and publishes them in one function, and serves the metrics, the health
// checks and the status page. It also holds the configuration, and swaps in a
// new model while records flow.
package monitor
