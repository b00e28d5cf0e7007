#!/bin/sh
# qmail-qstat - count the messages in the queue
#
# Needs to see the directories mess and todo: root, group qmail, or the owner of an own home.

home=${QMAIL_HOME:-/var/qmail}
cd "$home/queue" 2>/dev/null || {
	echo "qmail-qstat: fatal: unable to switch to $home/queue" >&2
	exit 111
}
for directory in mess todo; do
	[ -r "$directory" ] && [ -x "$directory" ] || {
		echo "qmail-qstat: fatal: unable to read $home/queue/$directory" >&2
		exit 111
	}
done

# Files come and go while find looks: what it says about that is no news.
count() {
	find "$1" -type f -name '[0-9]*' 2>/dev/null | wc -l | tr -d ' '
}

echo "messages in queue: $(count mess)"
echo "messages in queue but not yet preprocessed: $(count todo)"
