package main

import (
	"errors"
	"os"
	"time"

	"go.uber.org/zap"

	"github.com/cmekproxy/cmekproxy/internal/audit"
	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

// openAudit opens the audit log, or returns nil if none is configured. Only serve
// opens it: a command that another user runs could create a file to which the
// proxy may not write.
func (s *server) openAudit(cfg config.Audit) (*audit.Log, error) {
	out := audit.Config{
		File:     cfg.File,
		MaxSize:  int64(cfg.MaxSizeMB) << 20,
		MaxAge:   time.Duration(cfg.MaxAgeDays) * 24 * time.Hour,
		MaxFiles: cfg.MaxFiles,
		Now:      time.Now,
		Trouble:  func(err error) { s.log.Error("managing the audit log's files failed", zap.Error(err)) },
	}
	switch {
	case cfg.Stdout:
		out.Out = os.Stdout
	case cfg.File == "":
		return nil, nil
	}
	return audit.New(out)
}

// useAudit makes a log, or nil for none, the audit log.
func (s *server) useAudit(next *audit.Log) {
	if before := s.audit.Swap(next); before != nil {
		_ = before.Close() // each record was written, or its writer got an error
	}
	if next == nil {
		s.keys.SetAuditor(nil)
		return
	}
	s.keys.SetAuditor(s3api.Trail(s.record))
}

// record writes to the audit log, if there is one. An error is counted and
// logged.
func (s *server) record(r audit.Record) error {
	log := s.audit.Load()
	if log == nil {
		return nil
	}
	err := log.Write(r)
	if now := s.audit.Load(); errors.Is(err, audit.ErrClosed) && now != nil && now != log { // a reload has replaced it
		err = now.Write(r)
	}
	if err != nil {
		s.metrics.Unaudited.Inc()
		s.log.Error("writing to the audit log failed", zap.String("event", r.Event), zap.String("result", r.Result),
			zap.String("request_id", r.RequestID), zap.String("kms_key_name", r.KMSKeyName), zap.Error(err))
	}
	return err
}

func (s *server) reopenAudit() {
	log := s.audit.Load()
	if log == nil {
		return
	}
	if err := log.Reopen(); err != nil {
		s.log.Error("reopening the audit log failed; no key is used until it succeeds", zap.Error(err))
	}
}
