// Package scorer computes, for each embedding of an Arrow record, the score by
// a model, its conformal p-value, the nearest class and the decision.
package scorer
