"""Every decision of the supervisor, pure: ``handle(event, now) -> instructions``."""
