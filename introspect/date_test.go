package introspect_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

// A NumericDate is read exactly in every way that JSON can write it, and nothing else is taken
// for one.
func TestNumericDates(t *testing.T) {
	for number, want := range map[string]time.Time{
		"0": time.Unix(0, 0), "1700000000": time.Unix(1.7e9, 0), "1700000000.25": time.Unix(1.7e9, 25e7), "1700000000.000000001": time.Unix(1.7e9, 1),
		"1.7e9": time.Unix(1.7e9, 0), "1.7e+09": time.Unix(1.7e9, 0), "1.7E9": time.Unix(1.7e9, 0), "17e8": time.Unix(1.7e9, 0), "0.17e10": time.Unix(1.7e9, 0),
		"1.700000001e9": time.Unix(1_700_000_001, 0), "1.70000000025e9": time.Unix(1.7e9, 25e7), "17000000000e-1": time.Unix(1.7e9, 0),
		"1700000000e0": time.Unix(1.7e9, 0), "1700000000.50e+00": time.Unix(1.7e9, 5e8), "1.7000000000000e9": time.Unix(1.7e9, 0), "1e-9": time.Unix(0, 1),
		"253402300799": time.Unix(253402300799, 0), "2.53402300799e11": time.Unix(253402300799, 0), "0e21": time.Unix(0, 0),
	} {
		if got, ok := introspect.NumericDate(json.Number(number)); !ok || !got.Equal(want) {
			t.Errorf("%s: %v, %v; want %v", number, got, ok, want)
		}
	}
	for _, number := range []json.Number{
		"", "-1", "-0", "-1.7e9", "+1", "1e308", "1e12", "1e22", "1e-10", "1.7000000000000000001e9", "1e99999999999999999999", "1e-99999999999999999999", "1e", "e9", "1e+", "1e1e1", "1e1.5", ".", "1..2",
		"253402300800", "2.534023008e11", "18446744073709551616", "1700000000.0000000001", "0x1p3", "1_7", "NaN", "Infinity", " 1", "1 ",
		json.Number(strings.Repeat("0", 1<<16) + "e1"), json.Number("1." + strings.Repeat("0", 1<<16) + "e9"),
	} {
		if got, ok := introspect.NumericDate(number); ok {
			t.Errorf("%.40s was read as %v", number, got)
		}
	}
	for _, value := range []any{nil, "1700000000", 1.7e9, 1700000000, true, []any{json.Number("1")}} {
		if got, ok := introspect.NumericDate(value); ok {
			t.Errorf("%#v, which is not a JSON number, was read as %v", value, got)
		}
	}
}
