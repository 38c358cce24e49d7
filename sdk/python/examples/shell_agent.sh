#!/bin/sh
# An agent in a shell: it counts the words of what it is sent, and sends itself a farewell.
#
#     pullwake run --id shell --exec ./shell_agent.sh
#     pullwake spawn shell/1 --runner shell --message "one two three"
#     pullwake observe shell/1
#
# It gets one JSON object on its standard input; each line that it prints is appended to the
# entity's stream. With its write token it may also call the server itself.
set -eu
texts=$(python3 -c '
import json, sys
for message in json.load(sys.stdin)["messages"]:
    print(message["value"]["payload"])
')
case $texts in
farewell) echo "Goodbye." ; exit ;;
esac
echo "$(printf '%s' "$texts" | wc -w | tr -d ' ') words"
python3 -c '
import json, os, urllib.request
body = json.dumps({"payload": "farewell", "key": "farewell"}).encode()
headers = {"Content-Type": "application/json", "Electric-Claim-Token": os.environ["PULLWAKE_WRITE_TOKEN"]}
urllib.request.urlopen(urllib.request.Request(os.environ["PULLWAKE_SEND_URL"], body, headers))
'
