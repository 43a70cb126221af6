# A static binary without the embedded development store. The image has no
# shell, does not run as root and needs no writable directory:
#
#   docker build -t cmekproxy . && docker run --read-only -v $PWD/config.yaml:/config.yaml:ro -p 9000:9000 cmekproxy
FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG RELEASE=
RUN CGO_ENABLED=0 go build -tags nodev -trimpath -ldflags "-s -w -X main.release=${RELEASE}" -o /cmekproxy ./cmd/proxy

FROM gcr.io/distroless/static-debian12:nonroot
COPY --from=build /cmekproxy /cmekproxy
EXPOSE 9000
ENTRYPOINT ["/cmekproxy"]
CMD ["serve", "--config", "/config.yaml"]
