package demo

import "gonum.org/v1/gonum/stat/distuv"

// The window over which the demo watches the OOD rate, and the chance that it
// cries for nothing in any one window.
const (
	noticeWindow     = 200
	noticeFalseAlarm = 1e-6
)

// A noticer watches the OOD decisions in a sliding window, and notices when
// there are more than the chosen false-positive rate explains: a binomial test.
type noticer struct {
	window [noticeWindow]bool
	seen   int
	ood    int
	limit  int
}

func newNoticer(falsePositiveRate float64) *noticer {
	chance := distuv.Binomial{N: noticeWindow, P: falsePositiveRate}
	limit := 0
	for chance.Survival(float64(limit-1)) > noticeFalseAlarm {
		limit++
	}
	return &noticer{limit: limit}
}

// observe takes the next decision and reports whether the window now holds
// too many.
func (n *noticer) observe(ood bool) bool {
	slot := &n.window[n.seen%noticeWindow]
	if *slot {
		n.ood--
	}
	*slot = ood
	if ood {
		n.ood++
	}
	n.seen++
	return n.ood >= n.limit
}
