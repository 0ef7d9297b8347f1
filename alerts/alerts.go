// Package alerts holds the Prometheus alerting rules over what a running
// monitor exports: it writes them for a configuration, and evaluates them
// where no Prometheus does. Each alert has a page in docs/runbooks, and its
// firing and its silence are tested with promtool.
package alerts

import _ "embed"

// Rules is rules.yml, a Prometheus rule file: what Generate writes for the
// default configuration.
//
//go:embed rules.yml
var Rules []byte
