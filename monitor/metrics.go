package monitor

import (
	"runtime/debug"

	"github.com/oodmon/oodmon/model"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// metrics are the series of the line and of the model in service. The label
// `model`, the configured name, is put on by the registerer.
type metrics struct {
	records       prometheus.Counter
	ood           prometheus.Counter
	invalid       prometheus.Counter
	predicted     *prometheus.CounterVec
	score         *nativeHistogram
	pValue        *classicHistogram
	lastRecord    prometheus.Gauge
	batchDuration *prometheus.HistogramVec

	modelInfo     *prometheus.GaugeVec
	modelCreated  prometheus.Gauge
	targetFPR     prometheus.Gauge
	reloads       *prometheus.CounterVec
	reloadOK      prometheus.Gauge
	reloadOKTime  prometheus.Gauge
	retrainRun    prometheus.Gauge
	retrainOKTime prometheus.Gauge
	retrainResult *prometheus.GaugeVec
}

// The stages of a batch, as the label `stage` names them.
const (
	stageDecode     = "decode"
	stageScore      = "score"
	stagePublish    = "publish"
	stageDeadLetter = "dead_letter"
	stageCommit     = "commit" // of the transaction, with exactly-once delivery
	stageDrift      = "drift"
)

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	m := &metrics{
		records:    f.NewCounter(prometheus.CounterOpts{Name: "oodmon_records_total", Help: "Records scored and published or held back by output.when."}),
		ood:        f.NewCounter(prometheus.CounterOpts{Name: "oodmon_ood_records_total", Help: "Records whose score was above the threshold."}),
		invalid:    f.NewCounter(prometheus.CounterOpts{Name: "oodmon_invalid_scores_total", Help: "Records that have no score: not finite, or without a direction."}),
		predicted:  f.NewCounterVec(prometheus.CounterOpts{Name: "oodmon_predicted_class_total", Help: "Records by the class of the nearest prototype."}, []string{"class"}),
		lastRecord: f.NewGauge(prometheus.GaugeOpts{Name: "oodmon_last_record_timestamp_seconds", Help: "When the last record was scored."}),
		score:      newNativeHistogram(reg, "oodmon_score", "Score, by default the minimum distance score; larger is more out of distribution."),
		pValue: newClassicHistogram(reg, "oodmon_pvalue", "Conformal p-value; uniform while the stream is like the calibration data.",
			[]float64{.01, .05, .1, .2, .3, .4, .5, .6, .7, .8, .9, 1}),
		batchDuration: f.NewHistogramVec(prometheus.HistogramOpts{
			Name: "oodmon_batch_duration_seconds", Help: "Time that a batch spent in each stage of the line.",
			Buckets: prometheus.ExponentialBuckets(.0001, 4, 9),
		}, []string{"stage"}),

		modelInfo:     f.NewGaugeVec(prometheus.GaugeOpts{Name: "oodmon_model_info", Help: "1 for the model in service."}, []string{"version", "detector", "score"}),
		modelCreated:  f.NewGauge(prometheus.GaugeOpts{Name: "oodmon_model_created_timestamp_seconds", Help: "When the model in service was made."}),
		targetFPR:     f.NewGauge(prometheus.GaugeOpts{Name: "oodmon_target_false_positive_rate", Help: "The false-positive rate that the threshold was chosen for."}),
		reloads:       f.NewCounterVec(prometheus.CounterOpts{Name: "oodmon_model_reloads_total", Help: "Attempts to take in another model, by result."}, []string{"result"}),
		reloadOK:      f.NewGauge(prometheus.GaugeOpts{Name: "oodmon_model_last_reload_successful", Help: "0 while the registry's current model was refused or could not be read, else 1."}),
		reloadOKTime:  f.NewGauge(prometheus.GaugeOpts{Name: "oodmon_model_last_reload_success_timestamp_seconds", Help: "When the registry's current model was last known to be the one in service."}),
		retrainRun:    f.NewGauge(prometheus.GaugeOpts{Name: "oodmon_retrain_last_run_timestamp_seconds", Help: "When the last retraining ended, by the registry's history; 0 if none did."}),
		retrainOKTime: f.NewGauge(prometheus.GaugeOpts{Name: "oodmon_retrain_last_success_timestamp_seconds", Help: "When retraining last published a model, or made the one in service again, by the registry's history; 0 if it never did."}),
		retrainResult: f.NewGaugeVec(prometheus.GaugeOpts{Name: "oodmon_retrain_last_result", Help: "1 for the result of the last retraining."}, []string{"result"}),
	}
	for _, stage := range []string{stageDecode, stageScore, stagePublish, stageDeadLetter, stageCommit, stageDrift} {
		m.batchDuration.WithLabelValues(stage)
	}
	for _, result := range []string{"success", "failure"} {
		m.reloads.WithLabelValues(result)
	}
	build := f.NewGaugeVec(prometheus.GaugeOpts{Name: "oodmon_build_info", Help: "1, with the version of this program."}, []string{"version", "go_version"})
	version, goVersion := BuildVersion()
	build.WithLabelValues(version, goVersion).Set(1)
	return m
}

// observeModel makes the series tell of the model that is now in service.
func (m *metrics) observeModel(mod *model.Model) {
	m.modelInfo.Reset()
	m.modelInfo.WithLabelValues(mod.Version, mod.Detector, mod.Score).Set(1)
	m.modelCreated.Set(float64(mod.Created.Unix()))
	m.targetFPR.Set(mod.Alpha)
}

// BuildVersion returns the version of this program and of Go.
func BuildVersion() (version, goVersion string) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown", "unknown"
	}
	return info.Main.Version, info.GoVersion
}
