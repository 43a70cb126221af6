package main

import (
	"net/http"
	"slices"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// reloadAnswerJSON is the response of /admin/reload.
type reloadAnswerJSON struct {
	reloaded
	Error string `json:"error,omitempty"`
}

// serveReload reloads the configuration, as SIGHUP does.
func (s *server) serveReload(w http.ResponseWriter, r *http.Request) {
	answer := make(chan reloadAnswer, 1)
	select {
	case s.requests <- reloadRequest{byAdmin, answer}:
	case <-r.Context().Done():
		return
	}

	got := <-answer
	if got.err != nil {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(http.StatusUnprocessableEntity)
		answerJSON(w, reloadAnswerJSON{reloaded{[]string{}, []string{}}, got.err.Error()})
		return
	}
	answerJSON(w, reloadAnswerJSON{reloaded: got.reloaded})
}

// logLevels are the levels that log.level and /admin/log-level accept.
var logLevels = []string{"debug", "info", "warn", "error"} //nolint:gochecknoglobals // constant

func (s *server) serveLogLevel(w http.ResponseWriter, _ *http.Request) {
	if s.level == nil {
		http.Error(w, "the level of this log cannot change", http.StatusNotFound)
		return
	}
	answerJSON(w, map[string]string{"level": s.level.String()})
}

// changeLogLevel changes the level until log.level changes in a reload, or until
// a restart.
func (s *server) changeLogLevel(w http.ResponseWriter, r *http.Request) {
	given := r.URL.Query().Get("level")
	level, err := zapcore.ParseLevel(given)
	if err != nil || !slices.Contains(logLevels, given) {
		http.Error(w, "give the level: level=debug, info, warn or error", http.StatusBadRequest)
		return
	}
	if s.level != nil {
		before := s.level.Level()
		s.level.SetLevel(min(before, level, zapcore.WarnLevel)) // so that the change itself is logged
		s.log.Warn("log level changed", zap.Stringer("level", level), zap.String("by", "PUT /admin/log-level"),
			zap.String("remote", r.RemoteAddr))
		s.level.SetLevel(level)
	}
	s.serveLogLevel(w, r)
}
