#!/bin/sh
# Prints the manual page of cmekproxy, made from the help of each command:
#
#   man.sh PROGRAM
set -eu
program=$1

# text makes text of standard input harmless for roff.
text() { sed "s/\\\\/\\\\e/g; s/-/\\\\-/g; s/^\\([.']\\)/\\\\\\&\\1/"; }

# commands lists the commands below another one.
commands() {
  "$program" help "$@" | sed -n '/^Available Commands:/,/^$/s/^  \([a-z-]*\) .*/\1/p' | grep -vx help
}

# section prints the help of a command, and of those below it.
section() {
  echo ".SS $*"
  echo .nf
  "$program" help "$@" | grep -v '^Use "cmekproxy' | text
  echo .fi
  for below in $(commands "$@"); do section "$@" "$below"; done
}

cat <<END
.TH CMEKPROXY 1
.SH NAME
cmekproxy \- S3 proxy that encrypts objects under the key owner's KMS key
.SH SYNOPSIS
.B cmekproxy
.I COMMAND
.RI [ FLAGS ]
.SH DESCRIPTION
cmekproxy encrypts objects before they reach an S3 store. Only the key owner's key
management service can unwrap their data keys.
.SH COMMANDS
END
for command in $(commands); do
  case $command in completion) ;; *) section "$command" ;; esac
done
cat <<END
.SH FILES
.TP
.I /etc/cmekproxy/config.yaml
The configuration. /usr/share/doc/cmekproxy/examples has examples.
.SH EXIT STATUS
0 for success, 1 for a failure.
.SH SEE ALSO
https://github.com/cmekproxy/cmekproxy
END
