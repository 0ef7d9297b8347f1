package drift

import "time"

// A Baseline is what shift compares with and what the cells of change are made
// of: the calibration of the model in service.
type Baseline struct {
	// Model is the version. Scores of another model are never compared.
	Model string
	// Scores of the calibration records, ascending, and the class each was
	// nearest to, an index of Classes.
	Scores  []float32
	Class   []int32
	Classes []string
}

// A Batch is what one model said of n consecutive records of one partition. All
// slices have length n, but for Embedding with n×D values. ID, Segment and
// Embedding may be nil where the configuration doesn't ask for them. Nothing of
// it is kept after Observe.
type Batch struct {
	Model     string
	Partition int32
	Offset    []int64 // ascending
	Row       []int32
	Score     []float32
	// Class is −1 where there is no score.
	Class []int32
	OOD   []bool
	// Time is the record's own, in microseconds since 1970.
	Time      []int64
	ID        Texts
	Segment   Texts // "": none
	Embedding []float32
	// End is the offset after the last that the batch stands for, also of what had no
	// record to score.
	End int64
	// Missed says that the offsets come from Watch.Missed.
	Missed bool
}

func (b *Batch) embedding(row int32) []float32 {
	dim := len(b.Embedding) / len(b.Offset)
	return b.Embedding[int(row)*dim:][:dim]
}

// Texts are a column of texts, as Arrow has it.
type Texts interface{ Value(i int) string }

// The names of the two detectors.
const (
	Shift  = "shift"
	Change = "change"
)

// Detectors are both.
var Detectors = [2]string{Shift, Change}

// Retrain is the detector of an Alarm that recommends retraining: shift has
// stayed active, and its evidence against much wider limits is enough.
const Retrain = "retrain"

// An Alarm is a detector whose evidence has reached the threshold.
type Alarm struct {
	Detector string `json:"detector"` // shift, change or retrain
	// Segment is empty for the stream as a whole.
	Segment string    `json:"segment,omitempty"`
	Model   string    `json:"model_version"`
	Time    time.Time `json:"time"`
	// Evidence and Threshold are in seconds.
	Evidence  float64 `json:"evidence_seconds"`
	Threshold float64 `json:"threshold_seconds"`
	Onset     Onset   `json:"onset"`
	// Features are sorted by their evidence, the one that drives the alarm first.
	Features []FeatureEvidence `json:"features"`
	// Classes are the most frequent of late, Records those with the most extreme
	// scores since the onset: the lowest, where their sinking drives the alarm.
	Classes []ClassShare `json:"classes"`
	Records []Sample     `json:"records"`
}

// An Onset is the estimate of when the change began: the block of records, or the
// blocks of up to 128 records that were acknowledged together, at which the leading
// bet was last worth nothing.
type Onset struct {
	// Time is when the block was observed, RecordTime what its first record says.
	Time       time.Time `json:"time"`
	RecordTime time.Time `json:"record_time"`
	Partition  int32     `json:"partition"`
	Offset     int64     `json:"offset"`
	// Records is how many have been observed since, RecordsBefore how many before.
	Records       int64 `json:"records"`
	RecordsBefore int64 `json:"records_before"`
	// OODRateBefore and OODRateAfter are shares of those.
	OODRateBefore float64 `json:"ood_rate_before"`
	OODRateAfter  float64 `json:"ood_rate_after"`
}

// A FeatureEvidence is the part of the evidence that bets on one feature hold.
type FeatureEvidence struct {
	Feature  string  `json:"feature"`
	Evidence float64 `json:"evidence_seconds"`
	// Detail names the group of classes or the projection that leads.
	Detail string `json:"detail,omitempty"`
	// Before and After are the leading feature's means before and since its own
	// onset; Limit is what they may be without being called drift.
	Before float64 `json:"mean_before"`
	After  float64 `json:"mean_after"`
	Limit  float64 `json:"limit"`
}

// A Status is what a person wants to know at a glance.
type Status struct {
	Detectors []DetectorStatus `json:"detectors"`
	// Reference is what shift compares with.
	Reference          ReferenceStatus `json:"reference"`
	RetrainRecommended bool            `json:"retrain_recommended"`
	Segments           []SegmentStatus `json:"segments,omitempty"`
	Snapshot           time.Time       `json:"snapshot,omitzero"`
}

// A DetectorStatus is one detector of the whole stream.
type DetectorStatus struct {
	Detector  string  `json:"detector"`
	Evidence  float64 `json:"evidence_seconds"`
	Threshold float64 `json:"threshold_seconds"`
	// Block is how many records make one bet; 0: not yet known.
	Block      int               `json:"block"`
	Active     bool              `json:"active"`
	Alarms     int64             `json:"alarms"`
	Onset      time.Time         `json:"onset,omitzero"` // of the last alarm
	TopFeature string            `json:"top_feature,omitempty"`
	Features   []FeatureEvidence `json:"features"`
}

// A ReferenceStatus says what shift compares with, and how far it is built.
type ReferenceStatus struct {
	Source  string `json:"source"` // calibration or live
	Records int    `json:"records"`
	Needed  int    `json:"needed"`
}

// A SegmentStatus is one segment with detectors of its own.
type SegmentStatus struct {
	Segment   string           `json:"segment"`
	Records   int64            `json:"records"`
	Detectors []DetectorStatus `json:"detectors"`
	Reference ReferenceStatus  `json:"reference"`
}
