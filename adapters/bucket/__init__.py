"""A store in object storage: the same store as a folder, behind the same interface.

objects.py   the calls against a bucket: conditional reads and writes
index.py     where every alias points, in one small object; histories
versions.py  versions: whole before they are named, whole before they are used
cache.py     the versions on this machine: a folder of limited size
leases.py    who uses a version, for machines that share nothing but the bucket
store.py     `BucketStore`, of these
collect.py   garbage collection
peft_source.py   somebody else's PEFT folder, for an import

PREFIX/index.json                the last move of every alias
PREFIX/history/NAME.jsonl        the moves before, one line each
PREFIX/files/NAME/HASH/FILE      a version's files
PREFIX/records/NAME/HASH.json    what they are; written last, deleted last
PREFIX/leases/ID.json            what one process uses; renewed while it lives
PREFIX/collecting.json           held by the one garbage collection that runs
"""
