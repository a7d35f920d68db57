# docker build --target cpu -t reasonmaxxer:cpu .      docker build --target gpu -t reasonmaxxer:gpu .
# docker run -p 8000:8000 reasonmaxxer:cpu
# docker run --gpus all -p 8000:8000 -v ADAPTERS:/adapters reasonmaxxer:gpu \
#     --model Qwen/Qwen2.5-1.5B --adapters /adapters
FROM python:3.12-slim AS common
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 \
    VLLM_NO_USAGE_STATS=1 PATH=/opt/venv/bin:$PATH
RUN useradd --create-home --uid 10001 server \
    && pip install --no-cache-dir uv \
    && uv venv --no-cache /opt/venv
WORKDIR /app
COPY pyproject.toml overrides-cpu.txt README.md LICENSE ./
COPY adapters adapters
COPY reasonmaxxer reasonmaxxer
COPY vllm_gate vllm_gate
COPY serving serving

FROM common AS cpu
# libnuma and the OpenMP runtime are what vLLM's CPU kernels link against.
RUN apt-get update && apt-get install -y --no-install-recommends libnuma1 libgomp1 g++ \
    && rm -rf /var/lib/apt/lists/*
RUN uv pip install --python /opt/venv --no-cache --torch-backend cpu \
        --override overrides-cpu.txt -e '.[serve,cloud,cpu]'
COPY models models
ENV HOME=/home/server
USER server
EXPOSE 8000
HEALTHCHECK --start-period=180s --interval=15s --timeout=5s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["reasonmaxxer", "serve", "--host", "0.0.0.0", "--port", "8000"]

FROM common AS gpu
# Triton compiles a little C when it starts.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
# PyPI's torch is the CUDA build that vLLM's wheel is made for, whatever machine builds the image.
RUN uv pip install --python /opt/venv --no-cache -e '.[serve,cloud,gpu]'
COPY models models
ENV HOME=/home/server
USER server
EXPOSE 8000
HEALTHCHECK --start-period=600s --interval=15s --timeout=5s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["reasonmaxxer", "serve", "--host", "0.0.0.0", "--port", "8000"]
