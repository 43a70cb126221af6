package s3api

import (
	"encoding/xml"
	"net/http"
	"time"
)

// defaultKeepAlive is well below the time that clients wait for a response
// to begin: 50 s for the AWS SDK for Java, 60 s for boto3.
const defaultKeepAlive = 10 * time.Second

// keepAlive begins the response of a slow call, and then sends spaces, which
// XML ignores. S3 does the same. After that, the response cannot become an
// error: a later failure closes the connection. stop must be called before
// anything else is written.
func (s *Server) keepAlive(c *call) (stop func()) {
	interval := s.KeepAlive
	if interval <= 0 {
		interval = defaultKeepAlive
	}
	ticker := time.NewTicker(interval)
	end, ended := make(chan struct{}), make(chan struct{})

	go func() {
		defer close(ended)
		for {
			select {
			case <-end:
				return
			case <-ticker.C:
			}

			text := " "
			if !c.w.begun() { // or an earlier attempt of the call has begun it
				c.w.Header().Set("Content-Type", "application/xml")
				text = xml.Header
			}
			if _, err := c.w.Write([]byte(text)); err != nil {
				c.cancelContext(err)
				return
			}

			_ = http.NewResponseController(c.w.ResponseWriter).Flush()
		}
	}()

	return func() {
		ticker.Stop()
		close(end)
		<-ended
	}
}
