"""The loop: state -> proposal -> outcome -> decision -> ledger."""
