"""The least that an agent can do: say again what it was told.

python echo.py
pullwake spawn chat/hello --runner echo --message "Hello"
pullwake observe chat/hello
"""

import asyncio
import os

from pullwake import PullWakeRunner, Wake, logs

URL = os.environ.get("PULLWAKE_URL", "http://127.0.0.1:8000")
runner = PullWakeRunner(URL, "echo", token=os.environ.get("PULLWAKE_TOKEN"))


@runner.on("chat")
async def echo(wake: Wake) -> None:
    for message in await wake.messages():
        text = f"You said: {message.payload}"
        await wake.append({"type": "output", "key": f"re-{message.key}", "value": {"text": text}})


if __name__ == "__main__":
    logs.configure()
    asyncio.run(runner.run())
