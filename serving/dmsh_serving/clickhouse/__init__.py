"""A gallery in ClickHouse: the same answers as a gallery folder gives, past what one machine holds.

A gallery has three tables in its database: ``codes_NAME``, one row per code; ``removed_NAME``, which codes were taken
away; and ``galleries``, one row per published version of any gallery. A version is a list of *segments*, immutable sets
of codes. One insert into ``galleries`` publishes it. See ``docs/scale.md``.
"""
