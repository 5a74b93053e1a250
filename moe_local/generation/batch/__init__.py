"""Many prompts at once: each expert that is brought in serves all of them."""

from moe_local.generation.batch.followed import FollowedSequence, Follower
from moe_local.generation.batch.live import LiveBatch
from moe_local.generation.batch.request import Answer, Request
from moe_local.generation.batch.run import BatchGenerator, Progress

__all__ = ["Answer", "BatchGenerator", "FollowedSequence", "Follower", "LiveBatch", "Progress", "Request"]
