package main

import (
	"slices"
	"time"
)

// quantile returns the q-quantile of sorted values, interpolated linearly, or zero if there are none.
func quantile[T ~int64 | ~float64](sorted []T, q float64) T {
	if len(sorted) == 0 {
		return 0
	}
	at := q * float64(len(sorted)-1)
	i := int(at)
	if i+1 >= len(sorted) {
		return sorted[len(sorted)-1]
	}
	return sorted[i] + T((at-float64(i))*float64(sorted[i+1]-sorted[i]))
}

// spread is the median of the rounds, and how far they are apart.
type spread struct {
	Median        float64 `json:"median"`
	Least         float64 `json:"least"`
	LowerQuartile float64 `json:"lower_quartile"`
	UpperQuartile float64 `json:"upper_quartile"`
	Greatest      float64 `json:"greatest"`
}

func spreadOf(values []float64) spread {
	sorted := slices.Sorted(slices.Values(values))
	return spread{
		Median: quantile(sorted, 0.5), Least: quantile(sorted, 0), Greatest: quantile(sorted, 1),
		LowerQuartile: quantile(sorted, 0.25), UpperQuartile: quantile(sorted, 0.75),
	}
}

// ratios returns the ratio of each round. Their median is better than the ratio of the medians: both
// sides of a round met the machine in the same state.
func ratios(ours, baseline []float64) []float64 {
	all := make([]float64, len(ours))
	for i := range ours {
		all[i] = ours[i] / baseline[i]
	}
	return all
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
