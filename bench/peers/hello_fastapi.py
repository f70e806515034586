"""JSON from a bare FastAPI endpoint."""

from fastapi import FastAPI

app = FastAPI()


@app.get("/hello")
async def hello() -> dict[str, str]:
    """Greet."""
    return {"message": "hello, world"}
