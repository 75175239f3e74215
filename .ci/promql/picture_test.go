package promql

import (
	"flag"
	"fmt"
	"html"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "draw the dashboard anew")

const picture = "examples/observe/dashboard.svg"

// The picture of the dashboard is what its expressions make of the record. With -update it is
// drawn anew.
func TestPicture(t *testing.T) {
	all, steps := record(t)
	drawn := draw(t, readDashboard(t), all, steps)
	if *update {
		if err := os.WriteFile(filepath.Join(repositoryRoot, picture), []byte(drawn), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if read(t, picture) != drawn {
		t.Errorf("%s is another dashboard or another record; draw it anew: go -C .ci/promql test . -run TestPicture -update", picture)
	}
}

const (
	unitX, unitY = 40, 25 // of Grafana's grid, which has 24 columns
	border       = 12
)

// Colours that are readable on a light and on a dark page, as is the text's.
var colours = []string{"#1f77b4", "#d97706", "#2a9d5c", "#d1495b", "#8e6bd8", "#0e9aa7", "#b8860b", "#c2559d", "#6b8e23", "#8d7b6a"}

const text = "#808080"

// draw draws a dashboard as SVG. It needs no scripts and no fonts of its own.
func draw(t *testing.T, d dashboard, all series, steps int) string {
	var s strings.Builder
	height := 0
	for _, p := range d.Panels {
		height = max(height, (p.GridPos.Y+p.GridPos.H)*unitY)
	}
	fmt.Fprintf(&s, `<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12" fill="%s">`+"\n", 24*unitX, height, text)
	fmt.Fprintf(&s, "<title>%s</title>\n", html.EscapeString(d.Title))
	for _, p := range d.Panels {
		width, height := float64(p.GridPos.W*unitX-border), float64(p.GridPos.H*unitY-border)
		fmt.Fprintf(&s, `<g transform="translate(%d %d)">`+"\n", p.GridPos.X*unitX+border/2, p.GridPos.Y*unitY+border/2)
		if p.Type == "row" {
			fmt.Fprintf(&s, `<text x="0" y="14" font-size="14" font-weight="bold">%s</text>`+"\n</g>\n", html.EscapeString(p.Title))
			continue
		}
		fmt.Fprintf(&s, `<rect width="%.0f" height="%.0f" rx="3" fill="none" stroke="%s" stroke-opacity="0.4"/>`+"\n", width, height, text)
		var lines []line
		for _, target := range p.Targets {
			for _, result := range all.evaluate(t, grafana.Replace(target.Expr), steps) {
				l := line{name: legend(target.LegendFormat, result.Metric)}
				for _, point := range result.Floats {
					if x := float64(point.T-start.UnixMilli()) / 1000; !math.IsNaN(point.F) && !math.IsInf(point.F, 0) {
						l.points = append(l.points, [2]float64{x, point.F})
					}
				}
				if len(l.points) > 0 {
					lines = append(lines, l)
				}
			}
		}
		slices.SortStableFunc(lines, func(a, b line) int { return strings.Compare(a.name, b.name) })
		if p.Type == "stat" {
			p.drawStat(&s, width, height, lines)
		} else {
			p.drawLines(&s, width, height, lines, float64(steps-1)*step.Seconds())
		}
		s.WriteString("</g>\n")
	}
	s.WriteString("</svg>\n")
	return s.String()
}

type line struct {
	name   string
	points [][2]float64 // seconds, value
}

// drawStat writes the last value.
func (p panel) drawStat(s *strings.Builder, width, height float64, lines []line) {
	value, shown, colour := math.NaN(), "–", text
	if len(lines) > 0 {
		value = lines[0].points[len(lines[0].points)-1][1]
		shown = number(value)
		if p.FieldConfig.Defaults.Decimals != nil {
			shown = strconv.FormatFloat(value, 'f', *p.FieldConfig.Defaults.Decimals, 64)
		}
	}
	for _, threshold := range p.FieldConfig.Defaults.Thresholds.Steps {
		if threshold.Value == nil || value >= *threshold.Value {
			colour = map[string]string{"green": colours[2], "red": colours[3]}[threshold.Color]
		}
	}
	// The title may take two lines.
	words, rows := strings.Fields(p.Title), []string{""}
	for _, word := range words {
		if len(rows[len(rows)-1])+len(word) > 24 {
			rows = append(rows, "")
		}
		rows[len(rows)-1] = strings.TrimSpace(rows[len(rows)-1] + " " + word)
	}
	for i, row := range rows {
		fmt.Fprintf(s, `<text x="8" y="%d" font-size="10">%s</text>`+"\n", 15+12*i, html.EscapeString(row))
	}
	fmt.Fprintf(s, `<text x="%.1f" y="%.1f" font-size="28" text-anchor="middle" fill="%s">%s</text>`+"\n", width/2, height-18, colour, shown)
}

// drawLines draws lines over minutes, with a legend that leaves out what doesn't fit.
func (p panel) drawLines(s *strings.Builder, width, height float64, lines []line, seconds float64) {
	const left, right, top, letter, rows = 44, 8, 24, 5.4, 3
	type name struct {
		line int
		x, y float64
	}
	fits := int((width - 14 - right) / letter)
	for i, l := range lines {
		if letters := []rune(l.name); len(letters) > fits {
			lines[i].name = string(letters[:fits-1]) + "…"
		}
	}
	var legend []name
	x, row := 8.0, 0
	for i, l := range lines {
		wide := 14 + letter*float64(len(l.name))
		if x > 8 && x+wide > width-right {
			x, row = 8, row+1
		}
		if row == rows {
			break
		}
		legend = append(legend, name{i, x, float64(row)})
		x += wide
	}
	row = min(row, rows-1)
	bottom := height - 26 - 12*float64(row+1)

	most := 0.0
	for _, l := range lines {
		for _, point := range l.points {
			most = max(most, point[1])
		}
	}
	scale, unit := p.scale(most)
	most = roundUp(most * scale)
	atX := func(x float64) float64 { return left + x/seconds*(width-left-right) }
	atY := func(y float64) float64 { return bottom - y*scale/most*(bottom-top) }

	title := p.Title
	if unit != "" {
		title += ", " + unit
	}
	fmt.Fprintf(s, `<text x="8" y="15">%s</text>`+"\n", html.EscapeString(title))
	for i := range 3 {
		y := most * float64(i) / 2
		fmt.Fprintf(s, `<path d="M%d %.1fH%.1f" stroke="%s" stroke-opacity="0.3"/><text x="%d" y="%.1f" font-size="10" text-anchor="end">%s</text>`+"\n",
			left, atY(y/scale), width-right, text, left-5, atY(y/scale)+3.5, number(y))
	}
	for minutes := 0.0; minutes*60 <= seconds; minutes += 10 {
		fmt.Fprintf(s, `<text x="%.1f" y="%.1f" font-size="10" text-anchor="middle">%.0f min</text>`+"\n", max(atX(minutes*60), left+8), bottom+13, minutes)
	}
	for i, l := range lines {
		var path strings.Builder
		for j, point := range l.points {
			command := "L"
			if j == 0 || point[0]-l.points[j-1][0] > step.Seconds() {
				command = "M"
			}
			fmt.Fprintf(&path, "%s%.1f %.1f", command, atX(point[0]), atY(point[1]))
		}
		fmt.Fprintf(s, `<path d="%s" fill="none" stroke="%s" stroke-width="1.5"/>`+"\n", path.String(), colours[i%len(colours)])
	}
	for _, n := range legend {
		y := bottom + 28 + 12*n.y
		fmt.Fprintf(s, `<text x="%.1f" y="%.1f" font-size="10" fill="%s">%s</text>`+"\n", n.x, y, colours[n.line%len(colours)], html.EscapeString(lines[n.line].name))
	}
}

// scale returns what values up to most are multiplied with to be in a unit that people read.
func (p panel) scale(most float64) (factor float64, unit string) {
	switch p.FieldConfig.Defaults.Unit {
	case "reqps", "ops":
		return 1, "/s"
	case "percentunit":
		return 100, "%"
	case "bytes":
		return 1.0 / (1 << 20), "MiB"
	case "s":
		if most < 0.001 {
			return 1e6, "µs"
		}
		return 1000, "ms"
	}
	return 1, ""
}

// number writes a value with up to three digits.
func number(f float64) string { return strconv.FormatFloat(f, 'g', 3, 64) }

// roundUp rounds up to 1, 2, 2.5 or 5 times a power of ten. It returns 1 for zero or less.
func roundUp(f float64) float64 {
	if f <= 0 {
		return 1
	}
	unit := math.Pow(10, math.Floor(math.Log10(f)))
	for _, step := range []float64{1, 2, 2.5, 5} {
		if f <= step*unit {
			return step * unit
		}
	}
	return 10 * unit
}
