"""Compiled code of Hamming search. It uses nothing of the folders above it but the constants of ``contract``.

Words that these modules use:

address    where an array lies, as an int64. Compiled code gets addresses, so the caller keeps the arrays alive.
arrange    to copy codes into the form that vector instructions read: *slots* or *columns* (see ``vectors``).
block      up to 4,096 codes that stay in the first-level cache while every query is compared with them.
bound      a number that no distance inside a bucket is below.
bucket     64 consecutive codes of the clustered layout.
candidate  a code that may still be in the answer.
chunk      the blocks that a thread takes at a time.
cluster    in the clustered layout: one code and the ids of all images that have it.
cut        the k-th smallest distance found so far. A code at the cut or beyond it cannot enter the answer.
group      64 codes whose smallest distance is compared with the cut in one step.
job        the record that tells compiled code what to do. All threads of a search read the same one.
level      a possible distance: codes of B bytes have 8 * B + 1 levels.
participant  a thread that works on a job: 0 is the caller, 1 and more are helpers.
place      in the clustered layout: a position in the array of ids.
record     memory with named fields: a structured ``numpy.dtype``, read by attribute in compiled code.
slot       the bytes that a code takes in a vector: its width, rounded up to a power of two.
tile       the codes whose distances fill one vector.
width      bytes per code.
"""
