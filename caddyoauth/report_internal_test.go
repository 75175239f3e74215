package caddyoauth

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestReportOnlyEndsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		until := &ReportOnly{Until: time.Now().Add(time.Hour)}
		app := &App{}
		app.judgePaths(&Protect{ReportOnly: &ReportOnly{}})
		app.judgePaths(&Protect{ReportOnly: &ReportOnly{Until: time.Now().Add(2 * time.Hour)}})
		app.judgePaths(&Protect{ReportOnly: until})
		app.judgePaths(&Protect{ReportOnly: until, AllowAmbiguousPaths: true})
		app.judgePaths(&Protect{AllowAmbiguousPaths: true})
		if !until.holds() || app.refusesPaths() {
			t.Error("it does not hold")
		}
		if n := testing.AllocsPerRun(100, func() { until.holds() }); n != 0 {
			t.Errorf("%v allocations", n)
		}
		time.Sleep(time.Hour - time.Nanosecond)
		if !until.holds() || app.refusesPaths() {
			t.Error("it ends too early")
		}
		time.Sleep(time.Nanosecond)
		if until.holds() || !app.refusesPaths() {
			t.Error("it does not end")
		}
		if always := new(ReportOnly); !always.holds() {
			t.Error("without an end, it ends")
		}
		if none := (*ReportOnly)(nil); none.holds() {
			t.Error("it holds where there is none")
		}
		app.judgePaths(&Protect{})
		if !app.refusesPaths() {
			t.Error("one oauth_protect that refuses is not enough")
		}
	})
}
