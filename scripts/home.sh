# home.sh - what mkhome, mksystem, uninstall and instcheck share; read by them with `.`
#
# The caller sets: self (its name), root (this checkout), bin (where the built programs are).

die() {
	printf '%s: %s\n' "$self" "$*" >&2
	exit 111
}

# A link that leads nowhere is there, too.
is_there() { [ -e "$1" ] || [ -L "$1" ]; }

# Writes standard input to $1 with mode $2, by way of a temporary file.
put() {
	if is_there "$1.tmp"; then rm -f "$1.tmp"; fi
	cat >"$1.tmp" && chmod "$2" "$1.tmp"
	mv -f "$1.tmp" "$1"
}

# As put, unless the file is there: it may have been changed.
put_new() {
	if [ -e "$1" ]; then cat >/dev/null; else put "$1" "$2"; fi
}

# As put, from file $3, if that is another one.
put_changed() {
	cmp -s "$3" "$1" || put "$1" "$2" <"$3"
}

# As put_changed into the directory $1, with mode $2, from each of the files $3...: those that are not there yet are
# copied by one command, for a home is made of a hundred.
put_all() {
	into=$1 mode=$2
	shift 2
	for file; do
		shift
		if is_there "$into/${file##*/}"; then
			put_changed "$into/${file##*/}" "$mode" "$file"
		else
			set -- "$@" "$file"
		fi
	done
	[ $# -gt 0 ] || return 0
	cp -- "$@" "$into/"
	for file; do
		shift
		set -- "$@" "$into/${file##*/}"
	done
	chmod "$mode" "$@"
}

# The name that this host would have in control/me.
name_of_host() {
	host=$(hostname -f 2>/dev/null || hostname 2>/dev/null || cat /proc/sys/kernel/hostname)
	case $host in *.*) ;; *) host=$host.localdomain ;; esac
	printf '%s\n' "$host"
}

# Control files for host $1, where they are missing. The working directory is the home, here and below.
configure() {
	[ -z "$1" ] || printf '%s\n' "$1" | put_new control/me 644
	me=$(head -n 1 control/me)
	printf '%s\n' "$me" | put_new control/locals 644
	printf '%s\n' "$me" | put_new control/rcpthosts 644
	case $me in
	*.*.*) printf '%s\n' "${me#*.}" ;;
	*) printf '%s\n' "$me" ;;
	esac | put_new control/defaultdomain 644
	printf '%s\n' "$me" | put_new control/defaulthost 644
	[ -e control/scramsecret ] || od -An -vtx1 -N32 /dev/urandom | tr -d ' \n' | put_new control/scramsecret 644
	printf '%s\n' "$me" | sed 's/^.*\.\([^.]*\.[^.]*\)$/\1/' | put_new control/plusdomain 644
}

# The name in the home of the sample $1.
sample_path() {
	case ${1##*/} in
	README.md) echo samples/README.md ;; # it is about all of them, and none itself
	*) echo "samples/control/${1##*/}" ;;
	esac
}

samples() {
	put_all samples 644 "$root/control/README.md"
	set --
	for sample in "$root"/control/*; do
		case ${sample##*/} in README.md) continue ;; esac
		[ ! -f "$sample" ] || set -- "$@" "$sample"
	done
	put_all samples/control 644 "$@"
}

pages() {
	for section in 1 5 8; do
		put_all man/man$section 644 "$root"/doc/man/*.$section
	done
}

tcp_rules() {
	put_new tcp/smtp 644 <<'EOT'
# Who may connect by SMTP, and who may relay: tcprules(1). After a change:
#   tcprules tcp/smtp.cdb tcp/smtp.tmp <tcp/smtp
127.:allow,RELAYCLIENT=""
[::1]:allow,RELAYCLIENT=""
:allow
EOT
	"$bin/tcprules" tcp/smtp.cdb tcp/smtp.tmp <tcp/smtp || die "cannot compile tcp/smtp"
}

# 0 to 22, each behind $1/
split() {
	n=0
	while [ $n -lt 23 ]; do
		printf '%s ' "$1/$n"
		n=$((n + 1))
	done
}

# A system home, whole: a line a thing, its directory before it.
#   d|f|p mode owner group path     directory, file, fifo
#   l target - - path               symbolic link
tree() {
	printf '%s\n' 'd 0755 root qmail .' 'f 0644 root qmail users/ids'
	for path in bin control users tcp samples samples/control man man/man1 man/man5 man/man8; do
		echo "d 0755 root qmail $path"
	done
	# The group of what is made there is qmail, not that of whoever made it.
	echo 'd 2755 alias qmail alias'
	# The socket and its lock: only qmail-queued makes them, everybody connects. (And qmail-authd, as root, its own.)
	echo 'd 0755 qmailq qmail run'
	# What mta-sts knows of domains.
	echo 'd 0755 qmailr qmail sts'
	# Root's, so that no daemon can put another directory in the place of one of these.
	echo 'd 0750 root qmail queue'
	# shellcheck disable=SC2046
	for path in lock todo mess $(split mess); do echo "d 0750 qmailq qmail queue/$path"; done
	for path in pid intd; do echo "d 0700 qmailq qmail queue/$path"; done
	# shellcheck disable=SC2046
	for path in bounce info local remote $(split info) $(split local) $(split remote); do
		echo "d 0700 qmails qmail queue/$path"
	done
	echo 'f 0600 qmails qmail queue/lock/sendmutex'
	echo 'f 0644 qmailr qmail queue/lock/tcpto'
	echo 'f 0600 root qmail queue/lock/ledger.local'
	echo 'f 0600 qmailr qmail queue/lock/ledger.remote'
	echo 'p 0622 qmails qmail queue/lock/trigger'
	while read -r family name dir mode owner _; do
		case $family:$name in
		'#'*) ;;
		*'>'*) echo "l ${name#*>} - - $dir/${name%%>*}" ;;
		*) echo "f $mode $owner qmail $dir/$name" ;;
		esac
	done <"$root/bins/MANIFEST"
	for page in "$root"/doc/man/*.[158]; do
		echo "f 0644 root qmail man/man${page##*.}/${page##*/}"
	done
	for sample in "$root"/control/*; do
		[ ! -f "$sample" ] || echo "f 0644 root qmail $(sample_path "$sample")"
	done
}

# Sets have to "TYPE MODE UID GID LINKS" of $1, or to nothing if it is not there. What lies directly in the
# home may be a link: only root could make it, and control -> /etc/qmail is an old custom.
look() {
	case $1 in
	*/*) have=$(stat -c '%f %u %g %h' "$1" 2>/dev/null) || have='' ;;
	*) have=$(stat -L -c '%f %u %g %h' "$1" 2>/dev/null) || have='' ;;
	esac
	[ -n "$have" ] || return 0
	raw=0x${have%% *}
	case $(($raw & 0170000)) in
	"$((0040000))") kind=d ;;
	"$((0100000))") kind=f ;;
	"$((0010000))") kind=p ;;
	"$((0120000))") kind=l ;;
	*) kind=x ;;
	esac
	have="$kind $(printf %04o $(($raw & 07777))) ${have#* }"
}

kind_name() {
	case $1 in
	d) echo 'a directory' ;;
	f) echo 'a file' ;;
	p) echo 'a fifo' ;;
	l) echo 'a symbolic link' ;;
	*) echo 'something else' ;;
	esac
}

# The accounts of a system home, by role; root has none of its groups.
roles='alias qmaild qmaill root qmailp qmailq qmailr qmails'

# Takes uid_ROLE, gid_ROLE, gid_qmail and gid_nofiles from users/ids.
read_ids() {
	for role in $roles; do
		line=$(sed -n "s/^$role:\([0-9][0-9]*:[0-9][0-9]*\)\$/\1/p" users/ids)
		case $line in
		'' | *'
'*) die "users/ids does not name $role once" ;;
		esac
		eval "uid_$role=${line%:*} gid_$role=${line#*:}"
	done
	gid_qmail=$gid_qmailq gid_nofiles=$gid_qmaild
}
