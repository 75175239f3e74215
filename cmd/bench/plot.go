package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// plot draws growth and latency as SVG, in colours that are readable on a light and on a dark page.
func (r *report) plot() string {
	g := r.Growth
	var x, cpu, p50, p99, file, own []float64
	for i, p := range g.Points {
		if i > 0 { // nothing was issued before the first
			x = append(x, float64(p.Live))
			cpu, p50, p99 = append(cpu, p.CPU), append(p50, p.P50), append(p99, p.P99)
			file, own = append(file, mib(p.File)), append(own, mib(p.Memory.Own))
		}
	}
	panels := []panel{
		{"CPU time per token, µs", x, []line{{"gateway", cpu}}},
		{fmt.Sprintf("latency per token with %d connections, ms", fillConnections), x, []line{{"p50", p50}, {"p99", p99}}},
		{"MiB", x, []line{{"file", file}, {"memory without the file", own}}},
	}
	const width, height = 720, 200
	var s strings.Builder
	fmt.Fprintf(&s, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12" fill="#808080">`+"\n", width, height*len(panels)+30)
	fmt.Fprintf(&s, "<title>%s</title>\n", html.EscapeString("A bbolt file that grows to "+thousands(g.Tokens)+" live tokens"))
	for i, p := range panels {
		fmt.Fprintf(&s, `<g transform="translate(0 %d)">`+"\n", i*height)
		p.draw(&s, width, height)
		s.WriteString("</g>\n")
	}
	fmt.Fprintf(&s, `<text x="%d" y="%d" text-anchor="middle">live tokens in the file</text>`+"\n</svg>\n", width/2, height*len(panels)+20)
	return s.String()
}

// panel is one chart, with lines over the same x values. Both axes begin at zero.
type panel struct {
	title string
	x     []float64
	lines []line
}

type line struct {
	name string
	y    []float64
}

func (p panel) draw(s *strings.Builder, width, height float64) {
	const left, right, top, bottom = 60, 20, 30, 24
	most := func(values []float64) float64 {
		m := 0.0
		for _, v := range values {
			m = max(m, v)
		}
		return roundUp(m)
	}
	mostX, mostY := most(p.x), 0.0
	for _, l := range p.lines {
		mostY = max(mostY, most(l.y))
	}
	atX := func(x float64) float64 { return left + x/mostX*(width-left-right) }
	atY := func(y float64) float64 { return height - bottom - y/mostY*(height-top-bottom) }

	fmt.Fprintf(s, `<text x="%d" y="20">%s</text>`+"\n", left, html.EscapeString(p.title))
	for i := range 5 {
		part := float64(i) / 4
		y := atY(part * mostY)
		fmt.Fprintf(s, `<path d="M%d %.1fH%.1f" stroke="#808080" stroke-opacity="0.3"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n",
			left, y, width-right, left-6, y+4, number(part*mostY))
		fmt.Fprintf(s, `<text x="%.1f" y="%.1f" text-anchor="middle">%s</text>`+"\n", atX(part*mostX), height-bottom+16, thousands(int(part*mostX)))
	}
	names := ""
	for i, l := range p.lines {
		colour := []string{"#1f77b4", "#d97706"}[i]
		var points []string
		for j, y := range l.y {
			points = append(points, fmt.Sprintf("%.1f,%.1f", atX(p.x[j]), atY(y)))
		}
		fmt.Fprintf(s, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", strings.Join(points, " "), colour)
		names += fmt.Sprintf(`<tspan dx="12" fill="%s">%s</tspan>`, colour, html.EscapeString(l.name))
	}
	fmt.Fprintf(s, `<text x="%.1f" y="20" text-anchor="end">%s</text>`+"\n", width-right, names)
}

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
