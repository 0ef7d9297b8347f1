// Package consumer reads a Kafka topic as a member of a consumer group: one
// worker per assigned partition takes batches from the broker, hands them to a
// Handler, and commits what the handler has acknowledged. Delivery is at least
// once; nothing is skipped silently. ReadRange reads a bounded part of a topic
// without a group.
package consumer
